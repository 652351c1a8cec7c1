"""Does a run fit, and how fast can it be?"""
