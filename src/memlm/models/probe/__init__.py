"""The probe: a decoder that is trained to reconstruct a text from a frozen encoder's vector."""
