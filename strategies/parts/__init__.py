"""Parts of the server: what composes with any averaging method, one file a part."""
