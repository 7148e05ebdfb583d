"""Published prompt lists beyond captions: types, other wordings, and folders of training images."""
