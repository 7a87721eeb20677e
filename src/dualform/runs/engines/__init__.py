"""Where the cells of a sweep execute: processes of this machine, a Ray cluster, or Slurm."""
