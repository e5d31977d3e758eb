"""The library: a folder of experts with their versions, manifests and entries.

library    the library as it is read
versions   the versions of experts on disk, and how one is added
manifest   what is known of a version, in expert.json
entries    mixes with a name, in files
ingest     from folders and other experts to new experts
listing    what a library holds, at a glance
export     experts for other programs
"""
