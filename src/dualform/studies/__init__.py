"""One question a file: settings in, a result out."""
