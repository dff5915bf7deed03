"""The masked mixer."""
