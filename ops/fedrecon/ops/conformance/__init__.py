"""Plays a server against a device SDK, and says which rules of the protocol it keeps.

One scene after the other: each gives a device one participation, in which the services answer well, badly or not at all
(`scenes`, `masked_scenes`). Everything that the device says is written down (`hearing`), and the rules of
`docs/protocol.md` are judged over what was heard (`rules`, `judging`): no rule looks into the device. A device is any
process that is told an address.
"""
