"""`audit`: look for label leaks, duplicates and bad texts in a data root before a student is trained on it.

A check turns `AuditData` (`inputs`) into a `Section` with `Finding`s (`findings`); `command` lists all.
"""
