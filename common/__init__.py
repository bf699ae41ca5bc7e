"""What two or more scripts need, and nothing else."""
