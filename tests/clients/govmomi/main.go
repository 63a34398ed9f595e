// A statically linked vSphere client: no libc, so Go's own resolver and raw system calls.
//
//	govmomi URL USER PASSWORD list | poweroff NAME | poweron NAME
//
// Prints "NAME STATE" for each virtual machine, sorted, after the command. VSPHERE_CA names the
// file of the authority to trust; without it nothing is verified.
package main

import (
	"context"
	"fmt"
	"log"
	"net/url"
	"os"
	"sort"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 5 {
		log.Fatal("usage: govmomi URL USER PASSWORD list | poweroff NAME | poweron NAME")
	}
	if err := run(context.Background(), os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, address, user, password, command string, names []string) error {
	endpoint, err := soap.ParseURL(address)
	if err != nil {
		return err
	}
	authority := os.Getenv("VSPHERE_CA")
	transport := soap.NewClient(endpoint, authority == "")
	if authority != "" {
		if err := transport.SetRootCAs(authority); err != nil {
			return err
		}
	}
	client, err := vim25.NewClient(ctx, transport)
	if err != nil {
		return err
	}
	login := session.NewManager(client)
	if err := login.Login(ctx, url.UserPassword(user, password)); err != nil {
		return err
	}
	defer login.Logout(ctx)

	machines, err := list(ctx, client)
	if err != nil {
		return err
	}
	if command != "list" {
		if err := power(ctx, client, machines, command, names); err != nil {
			return err
		}
		if machines, err = list(ctx, client); err != nil {
			return err
		}
	}
	for _, machine := range machines {
		fmt.Println(machine.Name, machine.Runtime.PowerState)
	}
	return nil
}

func list(ctx context.Context, client *vim25.Client) ([]mo.VirtualMachine, error) {
	kind := []string{"VirtualMachine"}
	container, err := view.NewManager(client).CreateContainerView(ctx, client.ServiceContent.RootFolder, kind, true)
	if err != nil {
		return nil, err
	}
	defer container.Destroy(ctx)
	var machines []mo.VirtualMachine
	err = container.Retrieve(ctx, kind, []string{"name", "runtime.powerState"}, &machines)
	sort.Slice(machines, func(i, j int) bool { return machines[i].Name < machines[j].Name })
	return machines, err
}

func power(ctx context.Context, client *vim25.Client, machines []mo.VirtualMachine, command string, names []string) error {
	if len(names) != 1 {
		return fmt.Errorf("%s takes one name", command)
	}
	for _, machine := range machines {
		if machine.Name != names[0] {
			continue
		}
		var task *object.Task
		var err error
		switch vm := object.NewVirtualMachine(client, machine.Self); command {
		case "poweroff":
			task, err = vm.PowerOff(ctx)
		case "poweron":
			task, err = vm.PowerOn(ctx)
		default:
			return fmt.Errorf("no command %s", command)
		}
		if err != nil {
			return err
		}
		return task.Wait(ctx)
	}
	return fmt.Errorf("no virtual machine %s", names[0])
}
