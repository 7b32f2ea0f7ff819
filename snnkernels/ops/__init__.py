"""The public ops, one file each; a name with an underscore is what they share."""
