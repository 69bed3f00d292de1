"""Where images come from, betons and their manifests, loaders."""
