"""Images in and out: one reader for whatever a user gives; grids, movies and curves as files."""
