"""Operators whose fast form depends on the backend; each proves itself equal to the plain form."""
