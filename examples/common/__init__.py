"""What the examples share: images, quality measures, rivals, pictures and tables. The loops are in the examples."""
