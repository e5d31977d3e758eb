"""The library: a folder of experts with their versions, manifests and entries.

library    the library as it is read
versions   the versions of experts on disk, and how one is added
names      the names of experts, versions and what lies beside them
staging    how versions get their places, all that belong together or none
integrity  weights that are, byte for byte, those that were added
manifest   what is known of a version, in expert.json
twins      which parts of Twin-Merging belong together
entries    mixes with a name, in files
origin     what a folder says of its base, tokenizer and chat template
ingest     from folders and other experts to new experts
checkup    all that is wrong in a library, in one pass
listing    what a library holds, at a glance
export     experts for other programs
"""
