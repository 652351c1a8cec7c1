"""The mesh, the placement of arrays on it, and the processes of a run."""
