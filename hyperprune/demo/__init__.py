"""The demo: a ResNet-20 for real handwritten digits, pruned to half its MACs in a few minutes.

``digits`` holds the data, ``resnet`` the user's model, ``train`` the user's training loop and
``run`` the story from the trained network to the table and the picture.
"""
