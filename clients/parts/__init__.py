"""Parts of the device, for any method; one file a part."""
