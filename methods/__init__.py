"""What is optimised: the contract of a method, and one file for each paper."""
