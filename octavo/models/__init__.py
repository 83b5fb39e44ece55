"""The blueprints: what each family of models is built from. They know configs and checkpoint names, no requests."""
