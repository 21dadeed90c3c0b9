"""Holds what a serving cluster runs on in AWS: a CloudFormation template, and the programs of a worker's instance."""
