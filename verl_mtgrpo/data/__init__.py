"""Question sets: read them, split them, write them as verl's parquet files."""
