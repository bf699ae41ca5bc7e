"""What every table must also show: simple generators and real cells, by the contract of `data_generation.model`."""
