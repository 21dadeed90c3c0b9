"""A fleet of instances brought to a target, safely."""
