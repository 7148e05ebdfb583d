"""What published lists say besides captions: types, other wordings, and folders of training images."""
