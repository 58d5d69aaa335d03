"""Decide: typed questions about a state, answered by a base model and its adapters with probabilities."""

from tuner.text.lookup import tr
from tuner.ui import deciding, theme

theme.head(
    tr("Decide"), tr("Ask a model yes or no, which of several, or how much; it answers with probabilities.")
)
deciding.panel()
