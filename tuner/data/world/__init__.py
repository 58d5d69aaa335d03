"""The starter world: a small made-up world, text and questions about it, and scores of answers. Free of
torch.

`words` and `people` hold what is true, `questions`, `voices`, `talk` and `text` say it, `sets` writes the
sample data sets (`python -m tuner.data.world`) and `scoring` marks answers.
"""
