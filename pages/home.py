"""Home: what runs, how the last runs ended, and what to do next."""

from tuner.text.lookup import tr
from tuner.ui import home, run_list, theme

theme.head(tr("Home"), tr("Running and recent runs."))

steps = home.steps()
if any(step.done for step in steps):
    home.since()
    home.figures()
    run_list.at_work()
if not all(step.done for step in steps):
    home.checklist(steps)
home.attention()
run_list.lately(6)
