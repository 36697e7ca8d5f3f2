"""stub"""
DISTRIBUTIONS = ()
