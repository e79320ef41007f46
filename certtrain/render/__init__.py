"""Output on the terminal: tables, progress bars, notes, JSON lines. Rich is imported only here.

The numbers are plain values from `certtrain.diagnostics`, from events of a training, and from reports of a
verification.
"""

from certtrain.render.benchmark import show_contradictions as show_contradictions
from certtrain.render.benchmark import show_done as show_done
from certtrain.render.benchmark import show_tallies as show_tallies
from certtrain.render.comparison import show_comparison as show_comparison
from certtrain.render.console import error as error
from certtrain.render.console import note as note
from certtrain.render.console import say as say
from certtrain.render.console import say_stopping as say_stopping
from certtrain.render.console import silent as silent
from certtrain.render.decision import show_decision as show_decision
from certtrain.render.epochs import show_history as show_history
from certtrain.render.epochs import show_progress as show_progress
from certtrain.render.epochs import show_trained as show_trained
from certtrain.render.initial import show_compared as show_compared
from certtrain.render.initial import show_initial as show_initial
from certtrain.render.initial import show_sweep as show_sweep
from certtrain.render.layers import show_models as show_models
from certtrain.render.layers import show_states as show_states
from certtrain.render.machine import show_checks as show_checks
from certtrain.render.pictures import show_picture as show_picture
from certtrain.render.pictures import show_pictures_summary as show_pictures_summary
from certtrain.render.presets import show_presets as show_presets
from certtrain.render.presets import show_toml as show_toml
from certtrain.render.presets import toml_width as toml_width
from certtrain.render.progress import checking as checking
from certtrain.render.progress import loading as loading
from certtrain.render.progress import progress as progress
from certtrain.render.radii import show_radii as show_radii
from certtrain.render.results import show_comparisons as show_comparisons
from certtrain.render.results import show_json as show_json
from certtrain.render.results import show_report as show_report
from certtrain.render.results import show_stopped as show_stopped
from certtrain.render.training import training_view as training_view
from certtrain.render.tuning import TrialView as TrialView
from certtrain.render.tuning import show_trials as show_trials
from certtrain.render.verification import show_checked as show_checked
from certtrain.render.verification import verifying as verifying
