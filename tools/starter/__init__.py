"""The starter pack: a small made-up world, text and questions about it, the sample sets and the model made of them.

`words` and `people` hold what is true, `questions`, `voices`, `talk` and `text` say it, `patterns` finds right answers,
`sets` writes the sample data sets; none of these needs torch. `chatml`, `training` and `card` make the model.
"""
