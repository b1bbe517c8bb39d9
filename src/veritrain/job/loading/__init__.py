"""Running a job's code from the bytes that its commitment covers, and from no others.

installed   which files belong to the installation, and which packages they are
snapshot    the job's files: found from their text, each read once
modules     the job's modules: executed from the snapshot; every other import is looked at
scripts     jobs that were made in a script: did the files that define them run as they are?
"""
