"""The commands of `tta`, and nothing else.

What takes long to import is imported when a command runs, so that `tta --help` is quick.

main               `tta` itself, and `tta serve`
options            what several commands share: options, printing, examples, a progress bar
experts            `tta experts`: its commands and their options
experts_making     the work of those that make, merge, check or export experts
experts_output     what `tta experts` prints and draws
router             `tta router`: training and comparing what routes, asking a running server
router_training    the commands that learn from a few prompts
router_sampling    the experts and the prompts that those learn from
router_output      what `tta router` prints
experiment         `tta experiment`: what is computed from a database or from a definition
experiment_admin   the commands of it that a running server carries out
admin_client       the management of a running server, asked over HTTP
evaluate           `tta eval`
search             `tta search`
doctor             `tta doctor`
machine_checkup    what it finds of a machine
config             `tta config`: check, show, document and reload configs
keys               `tta keys`: API keys
"""
