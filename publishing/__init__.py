"""Publishing on the Hub: stage a folder, refuse what is unsafe, write its card, upload; and the check of a wheel."""
