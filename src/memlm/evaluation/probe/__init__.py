"""The probe: how much of a text can be read from a vector."""
