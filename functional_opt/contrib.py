"""Optax's `contrib` by its names; all of them also stand at the top of the library."""

from .optimizers.acprop import acprop as acprop
from .optimizers.acprop import scale_by_acprop as scale_by_acprop
from .optimizers.galore import GaLoreDimensionNumbers as GaLoreDimensionNumbers
from .optimizers.galore import GaLoreState as GaLoreState
from .optimizers.galore import galore as galore
from .optimizers.galore import scale_by_galore as scale_by_galore
from .optimizers.madgrad import MadgradState as MadgradState
from .optimizers.madgrad import madgrad as madgrad
from .optimizers.madgrad import scale_by_madgrad as scale_by_madgrad
from .optimizers.muon import MuonState as MuonState
from .optimizers.muon import muon as muon
from .optimizers.muon import scale_by_muon as scale_by_muon
from .optimizers.schedule_free import ScheduleFreeState as ScheduleFreeState
from .optimizers.schedule_free import schedule_free as schedule_free
from .optimizers.schedule_free import schedule_free_adamw as schedule_free_adamw
from .optimizers.schedule_free import schedule_free_eval_params as schedule_free_eval_params
from .optimizers.schedule_free import schedule_free_sgd as schedule_free_sgd
from .optimizers.sophia import SophiaState as SophiaState
from .optimizers.sophia import sophia as sophia
from .transforms.hutchinson import HutchinsonState as HutchinsonState
from .transforms.hutchinson import hutchinson_estimator_diag_hessian as hutchinson_estimator_diag_hessian
from .transforms.normalize import NormalizeState as NormalizeState
from .transforms.normalize import normalize as normalize
from .transforms.sam import SAMState as SAMState
from .transforms.sam import sam as sam
