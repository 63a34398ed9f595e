import java.io.FileInputStream;
import java.io.StringReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.util.Map;
import java.util.TreeMap;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509ExtendedTrustManager;
import javax.xml.parsers.DocumentBuilderFactory;
import org.w3c.dom.Document;
import org.w3c.dom.Element;
import org.w3c.dom.Node;
import org.w3c.dom.NodeList;
import org.xml.sax.InputSource;

/**
 * A vSphere client for a plain JVM, speaking the vSphere API's SOAP by itself.
 *
 * <pre>java Client.java URL USER PASSWORD list | poweroff NAME | poweron NAME</pre>
 *
 * Prints "NAME STATE" for each virtual machine, sorted, after the command. VSPHERE_CA names the file
 * of the authority to trust; without it nothing is verified.
 */
public final class Client {
    private final HttpClient http;
    private final URI endpoint;
    private String cookie = "";

    private Client(String url) throws Exception {
        endpoint = URI.create(url).resolve("/sdk");
        http = HttpClient.newBuilder().sslContext(trust(System.getenv("VSPHERE_CA"))).build();
    }

    public static void main(String[] args) {
        if (args.length < 4) {
            System.err.println("usage: Client URL USER PASSWORD list | poweroff NAME | poweron NAME");
            System.exit(2);
        }
        try {
            new Client(args[0]).run(args[1], args[2], args[3], args.length > 4 ? args[4] : null);
        } catch (Exception error) {
            StringBuilder message = new StringBuilder(error.toString());
            for (Throwable cause = error.getCause(); cause != null; cause = cause.getCause()) {
                message.append(": ").append(cause);
            }
            System.err.println(message);
            System.exit(1);
        }
    }

    private void run(String user, String password, String command, String name) throws Exception {
        Element content = call("RetrieveServiceContent", reference("_this", "ServiceInstance", "ServiceInstance"));
        call("Login", copy("_this", content, "sessionManager")
                + "<userName>" + escape(user) + "</userName><password>" + escape(password) + "</password>");
        Map<String, Machine> machines = machines(content);
        if (!command.equals("list")) {
            Machine machine = machines.get(name);
            if (machine == null) {
                throw new IllegalArgumentException("no virtual machine " + name);
            }
            power(content, machine, command);
            machines = machines(content);
        }
        machines.forEach((key, machine) -> System.out.println(key + " " + machine.state));
        call("Logout", copy("_this", content, "sessionManager"));
    }

    private record Machine(String id, String state) {}

    private Map<String, Machine> machines(Element content) throws Exception {
        Element view = call("CreateContainerView", copy("_this", content, "viewManager")
                + copy("container", content, "rootFolder")
                + "<type>VirtualMachine</type><recursive>true</recursive>");
        String set = "<propSet><type>VirtualMachine</type><pathSet>name</pathSet>"
                + "<pathSet>runtime.powerState</pathSet></propSet>"
                + "<objectSet>" + reference("obj", "ContainerView", view.getTextContent()) + "<skip>true</skip>"
                + "<selectSet xsi:type=\"TraversalSpec\"><type>ContainerView</type><path>view</path>"
                + "</selectSet></objectSet>";
        Map<String, Machine> machines = new TreeMap<>();
        NodeList objects = properties(content, set).getElementsByTagNameNS("*", "objects");
        for (int i = 0; i < objects.getLength(); i++) {
            Element object = (Element) objects.item(i);
            Map<String, String> found = new TreeMap<>();
            NodeList values = object.getElementsByTagNameNS("*", "propSet");
            for (int j = 0; j < values.getLength(); j++) {
                Element value = (Element) values.item(j);
                found.put(child(value, "name").getTextContent(), child(value, "val").getTextContent());
            }
            String id = child(object, "obj").getTextContent();
            machines.put(found.get("name"), new Machine(id, found.get("runtime.powerState")));
        }
        return machines;
    }

    private void power(Element content, Machine machine, String command) throws Exception {
        String method = switch (command) {
            case "poweroff" -> "PowerOffVM_Task";
            case "poweron" -> "PowerOnVM_Task";
            default -> throw new IllegalArgumentException("no command " + command);
        };
        String task = call(method, reference("_this", "VirtualMachine", machine.id)).getTextContent();
        String set = "<propSet><type>Task</type><pathSet>info.state</pathSet></propSet>"
                + "<objectSet>" + reference("obj", "Task", task) + "</objectSet>";
        while (true) {
            Element found = properties(content, set);
            String state = ((Element) found.getElementsByTagNameNS("*", "val").item(0)).getTextContent();
            if (state.equals("success")) {
                return;
            }
            if (state.equals("error")) {
                throw new IllegalStateException(command + " failed");
            }
            Thread.sleep(50);
        }
    }

    private Element properties(Element content, String set) throws Exception {
        return call("RetrievePropertiesEx",
                copy("_this", content, "propertyCollector") + "<specSet>" + set + "</specSet><options/>");
    }

    /** Calls a method and returns the element of its answer: "returnval", or the response itself. */
    private Element call(String method, String parameters) throws Exception {
        String envelope = "<?xml version=\"1.0\"?>"
                + "<Envelope xmlns=\"http://schemas.xmlsoap.org/soap/envelope/\""
                + " xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><Body><" + method
                + " xmlns=\"urn:vim25\">" + parameters + "</" + method + "></Body></Envelope>";
        HttpRequest.Builder request = HttpRequest.newBuilder(endpoint)
                .header("Content-Type", "text/xml; charset=utf-8")
                .header("SOAPAction", "urn:vim25/6.5")
                .POST(HttpRequest.BodyPublishers.ofString(envelope));
        if (!cookie.isEmpty()) {
            request.header("Cookie", cookie);
        }
        var response = http.send(request.build(), BodyHandlers.ofString());
        response.headers().firstValue("Set-Cookie").ifPresent(value -> cookie = value.split(";")[0]);
        DocumentBuilderFactory factory = DocumentBuilderFactory.newInstance();
        factory.setNamespaceAware(true);
        Document document = factory.newDocumentBuilder().parse(new InputSource(new StringReader(response.body())));
        NodeList faults = document.getElementsByTagNameNS("*", "faultstring");
        if (faults.getLength() > 0) {
            throw new IllegalStateException(method + ": " + faults.item(0).getTextContent());
        }
        NodeList results = document.getElementsByTagNameNS("*", "returnval");
        return results.getLength() > 0 ? (Element) results.item(0) : document.getDocumentElement();
    }

    private static Element child(Element parent, String name) {
        for (Node node = parent.getFirstChild(); node != null; node = node.getNextSibling()) {
            if (name.equals(node.getLocalName())) {
                return (Element) node;
            }
        }
        throw new IllegalStateException("no " + name + " in " + parent.getNodeName());
    }

    private static String copy(String tag, Element content, String name) {
        Element found = child(content, name);
        return reference(tag, found.getAttribute("type"), found.getTextContent());
    }

    private static String reference(String tag, String type, String id) {
        return "<" + tag + " type=\"" + type + "\">" + escape(id) + "</" + tag + ">";
    }

    private static String escape(String text) {
        return text.replace("&", "&amp;").replace("<", "&lt;");
    }

    private static SSLContext trust(String authority) throws Exception {
        TrustManager[] managers = {new TrustAll()};
        if (authority != null) {
            KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
            store.load(null, null);
            try (FileInputStream file = new FileInputStream(authority)) {
                store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
            }
            TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
            factory.init(store);
            managers = factory.getTrustManagers();
        }
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers, null);
        return context;
    }

    /** Extended, so that the JDK adds no check of the host name of its own. */
    private static final class TrustAll extends X509ExtendedTrustManager {
        @Override public void checkClientTrusted(X509Certificate[] c, String a) {}
        @Override public void checkServerTrusted(X509Certificate[] c, String a) {}
        @Override public void checkClientTrusted(X509Certificate[] c, String a, java.net.Socket s) {}
        @Override public void checkServerTrusted(X509Certificate[] c, String a, java.net.Socket s) {}
        @Override public void checkClientTrusted(X509Certificate[] c, String a, javax.net.ssl.SSLEngine e) {}
        @Override public void checkServerTrusted(X509Certificate[] c, String a, javax.net.ssl.SSLEngine e) {}
        @Override public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
    }
}
