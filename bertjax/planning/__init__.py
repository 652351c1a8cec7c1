"""Does a recipe fit a slice or a machine, and how fast can it be: see docs/design/plan.md."""
