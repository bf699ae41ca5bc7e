"""The method: seed cells chosen by attention, and the seeded GAN."""
