"""Every message of an error is provoked here or in the tests of what raises it."""
