"""Parts of the server, for any averaging method; one file a part."""
