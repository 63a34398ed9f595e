// A vCenter: govmomi's simulator with its VPX inventory, on the address given, with the
// certificate given. Prints its URL when it listens, and serves until it is killed.
package main

import (
	"crypto/tls"
	"fmt"
	"log"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	if len(os.Args) != 6 {
		log.Fatal("usage: simulator ADDRESS:PORT CERTIFICATE KEY USER PASSWORD")
	}
	certificate, err := tls.LoadX509KeyPair(os.Args[2], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	model := simulator.VPX()
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	model.Service.Listen = &url.URL{Host: os.Args[1], User: url.UserPassword(os.Args[4], os.Args[5])}
	fmt.Println("serving", model.Service.NewServer().URL.Redacted())
	select {}
}
