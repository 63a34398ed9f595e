"""A vSphere client on VMware's own SDK for Python.

    client.py URL USER PASSWORD list | poweroff NAME | poweron NAME

Prints "NAME STATE" for each virtual machine, sorted, after the command. VSPHERE_CA names the file
of the authority to trust; without it nothing is verified.
"""

import os
import ssl
import sys
from urllib.parse import urlsplit

from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim


def main(url, user, password, command, *names):
    authority = os.environ.get("VSPHERE_CA")
    context = ssl.create_default_context(cafile=authority)
    if not authority:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    address = urlsplit(url)
    instance = SmartConnect(
        host=address.hostname, port=address.port or 443, user=user, pwd=password, sslContext=context
    )
    try:
        content = instance.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        machines = {machine.name: machine for machine in view.view}
        if command != "list":
            power(machines, command, *names)
        for name in sorted(machines):
            print(name, machines[name].runtime.powerState)
    finally:
        Disconnect(instance)


def power(machines, command, name):
    if name not in machines:
        sys.exit(f"no virtual machine {name}")
    actions = {"poweroff": machines[name].PowerOff, "poweron": machines[name].PowerOn}
    if command not in actions:
        sys.exit(f"no command {command}")
    WaitForTask(actions[command]())


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (OSError, vim.fault.VimFault) as error:
        sys.exit(f"{type(error).__name__}: {getattr(error, 'msg', error)}")
