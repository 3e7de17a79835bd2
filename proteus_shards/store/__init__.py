"""Where rows rest. Stores load and commit rows; they never decide."""
