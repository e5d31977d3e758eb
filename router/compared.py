"""The policies that compare what the base and the experts predict (router.comparison)."""

from router.dawin import DawinPolicy
from router.prompt_nll import PromptNllPolicy
from router.t3 import T3Policy
from router.t3_batch import T3BatchPolicy

__all__ = ["DawinPolicy", "PromptNllPolicy", "T3BatchPolicy", "T3Policy"]
