"""The driver and its nodes on a system that has POSIX and little else."""
