"""What the serving cluster runs on: templates, boot script, units."""
