"""Human preference: pairs of runs, answers about them, the page that asks, and rewards fitted to what was said."""
