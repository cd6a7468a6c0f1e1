"""What every field of a config may be: its type, its range and its meaning, in one table."""
