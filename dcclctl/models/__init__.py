"""Cloud models: how each is trained, and how it scores candidates."""
