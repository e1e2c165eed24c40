"""What `verify` asks of the content of one record batch. Each check is written for whole batches, in numpy."""
